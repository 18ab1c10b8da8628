"""CoRTe teacher: a service that hides a segmentation model behind agreed predictions."""
