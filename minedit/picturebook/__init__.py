"""The embedded picture-book world: renderer, captions, training and the judge."""
