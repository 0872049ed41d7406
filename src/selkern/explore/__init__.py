"""A page that shows what selective kernels choose while one moves a picture: `selkern explore`."""
