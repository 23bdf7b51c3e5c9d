"""The schema, revision by revision; run by `quazzar migrate`, and at start in mode instance and all."""
