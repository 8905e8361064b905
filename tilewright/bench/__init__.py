"""Side by side: engines in processes of their own, outputs compared, calls timed by turns."""
