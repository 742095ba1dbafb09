"""Tiles with masks: COCO file or synthetic scenes -> records -> batches of numpy arrays.

Nothing here is loaded by `import tvjax`; import the module that is needed.
"""
