"""From ONNX to LiteRT (TensorFlow Lite): one .tflite file with one CONV_2D for each grouped convolution."""
