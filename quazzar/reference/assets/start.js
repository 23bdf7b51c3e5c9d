// Shows the API document that lies beside this page.
window.addEventListener("load", () => {
  SwaggerUIBundle({
    url: document.body.dataset.document,
    dom_id: "#reference",
    deepLinking: true,
    docExpansion: "list",
    defaultModelsExpandDepth: 0,
    tryItOutEnabled: true,
    persistAuthorization: false,
    validatorUrl: null,
  });
});
