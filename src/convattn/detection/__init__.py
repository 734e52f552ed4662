"""The task of finding objects: detectors over a backbone's levels, data with boxes and masks, COCO's evaluation."""
