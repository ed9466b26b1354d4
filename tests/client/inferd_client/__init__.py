"""A small client of inferd: live predictions, muscle-signal and IMU windows, samples of a sensor. Standard library only.

    from inferd_client import Client, Prediction

    device = Client("http://127.0.0.1:9000")
    for event in device.stream(fps=10, duration=5):
        if isinstance(event, Prediction):
            print(event.label, event.confidence)

Tensors of any kind go over the Open Inference Protocol, for which `tritonclient[http]` is the client.
"""

from .client import Client, Gesture, Pushed, Refused, Source, Unavailable
from .stream import Completed, Interrupted, Prediction, Stream

__all__ = [
    "Client",
    "Completed",
    "Gesture",
    "Interrupted",
    "Prediction",
    "Pushed",
    "Refused",
    "Source",
    "Stream",
    "Unavailable",
]
