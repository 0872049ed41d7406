"""Networks in the files of other runtimes: ONNX Runtime, OpenVINO, torch.export."""
