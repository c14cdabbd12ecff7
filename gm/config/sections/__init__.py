"""The sections of the schema, by theme."""
