"""Masks, probabilities and polygons of image files by a trained net."""
