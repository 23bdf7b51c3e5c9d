"""Template sources: catalogues of others, fetched, checked and kept."""
