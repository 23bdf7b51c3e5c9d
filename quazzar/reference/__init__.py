"""The API reference: the OpenAPI documents and a page to browse them, all from the package itself."""
