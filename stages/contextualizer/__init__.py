"""Stage `contextualizer`: masked language modelling on the prompt sets."""
