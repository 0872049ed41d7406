"""The data floor: images in, uint8 batches out; nothing is ever written into the user's data folder.

``open_source`` (``sources``) makes a ``Source`` of three splits (``split``) out of digits, folders, tables or Parquet.

- finding images    ``listing``, ``folders``, ``files``: folders; ``tables``, ``listed``: tables; ``parquet``,
  ``parquet_columns``; ``scenes``: drawn digits; ``labels``: names of classes; ``advice``: what is no data set
- a million images  ``columns``: lists of texts as arrays; ``kept``, ``folder_index``: indexes on the disk
- splits            ``splitting``: cut off by seed, or as an earlier run had them; ``identity``: images known again
- reading images    ``decode``: bytes to RGB, with ``pixels`` and ``levels``; ``survey``: headers
- for the network   ``preprocess`` and ``augment``; ``order``: which sample comes when, with which random numbers;
  ``loader``: batches
- looking           ``check``; ``sheet``
- objects           ``detection``: pictures with boxes to crops; ``boxes``: sizes of objects
"""

LARGEST_IMAGE = 8192  # px a side, 200 MB for each image of a batch
