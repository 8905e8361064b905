"""From scheduled programs to code that runs: targets, code generation, the cache, executables, exported files."""
