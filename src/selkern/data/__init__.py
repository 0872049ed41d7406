"""The data floor: images in, uint8 batches out; nothing is ever written into the user's data folder.

- ``order``       which sample comes when, and its random numbers: pure functions of (seed, epoch, index)
- ``decode``      bytes or a file -> an RGB image, or one line that says what is wrong with it
- ``split``       what a data source is (``Split``, ``Source``) and how its parts become one
- ``cut``         cutting val and test off by seed, and restoring a saved cut
- ``sources``     ``open_source``: digits | folder | CSV | Parquet -> ``Source``
- ``files``       the folder and CSV sources
- ``parquet``     the Parquet source
- ``scenes``      digit scenes, the data set inside the box, with the true scale of every object
- ``preprocess``  image -> (3, size, size) as the network sees it when it is evaluated
- ``augment``     the random changes of training images, mixup and cutmix
- ``loader``      samples and batches for torch's ``DataLoader``
"""
