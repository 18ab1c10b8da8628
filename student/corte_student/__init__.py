"""CoRTe student: a lightweight segmentation model from a black box's predictions."""
