"""tunescope: see where to tune, tune only that, prove that it worked.

The researcher's parts are the sub-packages (``from tunescope import data, engine, evaluate, layers, metrics, models,
runs, select``); each is imported when it is asked for, so that ``import tunescope`` costs nothing and never loads torch.
"""

__version__ = "0.1.0"
