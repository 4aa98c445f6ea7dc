"""ncnn as a target."""
