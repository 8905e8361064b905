"""From a model to scheduled programs: frontends, graph passes, fusion, lowering, schedules, memory. `compile.py` is the flow."""
