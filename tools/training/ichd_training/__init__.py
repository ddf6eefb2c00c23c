"""The road from labelled head CT to a signed model package. Steps: readers, prepare, model, train, evaluate, export."""

CLASSES = ["any", "epidural", "intraparenchymal", "intraventricular", "subarachnoid", "subdural"]
WINDOWS = {"brain": (40.0, 80.0), "subdural": (80.0, 200.0), "bone": (600.0, 2800.0)}
SIZE_PX, FIELD_MM, OUTSIDE_HU, STEP_MM_MIN = 192, 240.0, -1000.0, 2.5
CLIP_HU = (-1024.0, 3071.0)
MEAN, STD = 0.5, 0.5
"""Preprocessing as the manifest states it; the daemon reads these from the manifest, never from here."""
