"""The data floor: images in, uint8 batches out; nothing is ever written into the user's data folder.

``open_source`` (``sources``) makes a ``Source`` of three splits (``split``) out of digits, folders, tables or Parquet.

- finding images    ``listing``, ``layout``, ``split_names``, ``advice``, ``kinds``: folders; ``table``, ``listed``,
  ``lookup``, ``bad_rows``: tables; ``parquet`` and its parts; ``scenes``: drawn digits; ``labels``: names of classes
- splits            ``cut`` off by seed, ``saved`` ones restored, ``joined``; ``identity``: images known again
- reading images    ``decode``: bytes to RGB, by ``formats``, ``tags``, ``pixels``, ``levels``; ``survey``: headers
- for the network   ``preprocess`` and ``augment``; ``order``: which sample comes when, with which random numbers;
  ``loader``: batches
- looking           ``check`` and its ``findings``; ``sheet``
- objects           ``annotations`` by ``voc``, ``yolo``, ``coco``; ``objects``, ``crops``; ``boxes``: their sizes
"""
