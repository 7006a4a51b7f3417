"""The published corruptions: what each type does to a batch of images.

Every type is a function of the images, the type's constants at a severity, and the images' random
streams. Images are float (n, channels, height, width) in [0, 1] with 1 or 3 channels; results may
leave that range and are clipped by `corruption.corrupt`.
"""
