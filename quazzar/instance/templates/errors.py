"""What can be wrong with a call on templates, besides the file itself (`problems.TemplateInvalid`)."""

from quazzar.core.errors import Conflict, NotFound


class TemplateNotFound(NotFound):
    code = "template_not_found"
    message = "There is no such template"


class TemplateVersionNotFound(NotFound):
    code = "template_version_not_found"
    message = "This template has no such version"


class TemplateExists(Conflict):
    code = "template_exists"
    message = "A template of this slug exists already"


class TemplateOfSource(Conflict):
    code = "template_of_source"
    message = "This template belongs to a template source and can't be changed; add one of your own under another slug"


class TemplatePackaged(Conflict):
    code = "template_packaged"
    message = "This template comes with the release and can't be changed; add one of your own under another slug"
