"""A package only so that lm-eval's task discovery finds the YAML files in this folder."""
