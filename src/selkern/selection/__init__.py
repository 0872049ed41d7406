"""What the selective kernels of a network chose: recording, replacing and measuring selections."""
