#!/bin/sh
# `predict` of the container: one video, with the arguments of the authors' tool. Fetches missing weights first.
exec personalive animate --weights "$PERSONALIVE_WEIGHTS" --download "$@"
