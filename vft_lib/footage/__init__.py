"""What is trained on: real clips and stills, drawn worlds and textures, cut into moving windows."""
