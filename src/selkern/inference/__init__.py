"""A trained network, of ours or third-party, and the images that it is measured on."""
