"""What benchmarks have on disk besides images: ground truth, label tables, boxes, masks, lists.

One file per layout, each with plain functions that return dataclasses: ``retrieval`` (revisited Oxford and Paris),
``copydays``, ``davis``, ``voc``, ``coco``, ``lists`` (iNaturalist, Places, ImageNet's 1 % and 10 %). The docstring of
each says how the files must lie. ``local`` reads text, JSON and XML within a size limit and names missing files,
``masks`` reads and writes indexed masks. Everything is checked on reading: a file that is not there, an index out of
range or a label that cannot be meant is a ``UserError`` before anything is computed.
"""
