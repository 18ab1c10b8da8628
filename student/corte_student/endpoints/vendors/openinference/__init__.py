"""The Open Inference Protocol v2, as a client: KServe, Triton, MLServer, OpenVINO Model Server, TorchServe.

dialect     what is asked and what an answer states
options     the table [openinference] of --teacher-config
model       what the model's metadata says
pictures    from a picture to the input tensor
planes      from the output tensors to a prediction
failures    what is told as a success and is none
"""

from corte_student.endpoints.vendors.openinference.dialect import build

__all__ = ["build"]
