"""Object detection data (VOC, YOLO, COCO) as a classification data set: each box a crop."""
