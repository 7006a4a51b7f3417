"""The published corruptions, one function of a batch of images per type.

Every type is a function of the images, the type's constants at a severity, and the images' random
streams. Images are float (n, channels, height, width) in [0, 1] with 1 or 3 channels. Results may
exceed this range; `corruption.corrupt` clips them.
"""
