"""What each corruption type does to a batch, as pure functions of the images and a random field.

Every type is a :class:`Procedure`: ``draw`` takes what is random from the images' streams, ``apply``
is deterministic. Images are float (n, channels, height, width) in [0, 1] with 1 or 3 channels;
results may leave that range and are clipped by the caller.
"""
