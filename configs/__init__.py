"""The recipes, one file each with `get_config(arg)`; installed as `flowjax.configs`."""
