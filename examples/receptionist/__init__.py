"""A receptionist for three restaurants, who is written to; no API key is needed."""
