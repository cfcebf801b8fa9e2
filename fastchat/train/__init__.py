"""Room: training. One recipe, run by every process; arguments decide what it does. See README.md."""
