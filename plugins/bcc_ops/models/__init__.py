"""A trained model as a thing: load it, predict with it, register its versions, point to the champion."""
