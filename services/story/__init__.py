"""One verdict's story as a picture: recorded from a real run by a receiver of OTLP, drawn the same each time."""
