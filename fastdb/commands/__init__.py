"""The verbs, one module per group; the command line, the notebook and the demo all call these."""
