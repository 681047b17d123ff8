"""From a path to batches of views.

Data goes one way: ``datasets`` (what the images are: a folder, a list, arrays, ...) -> ``samplers`` (which images make
up an optimizer step, a pure function of seed and epoch) -> ``loader`` (worker processes that decode and cut views) ->
``transforms`` (``parameters`` draws what happens to an image from a generator keyed by seed, epoch and index;
``pixels`` does it) -> ``Batch`` of uint8 views -> ``normalise``, on the device, with the dataset's mean and std.

``decode`` turns any stored picture into 8-bit grey or RGB or says why it cannot, ``index`` keeps paths as one byte
array, ``index_cache`` keeps that on disk, ``scan`` walks folders, ``cache`` keeps decoded images in memory, ``sources``
is what the built-in datasets share.
"""
