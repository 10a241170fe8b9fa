"""A receptionist for three restaurants, who is written to or spoken to; no API key is needed."""
