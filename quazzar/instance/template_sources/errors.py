"""What can be wrong with a call on template sources."""

from quazzar.core.errors import Conflict, NotFound


class TemplateSourceNotFound(NotFound):
    code = "template_source_not_found"
    message = "There is no such template source"


class TemplateSourceExists(Conflict):
    code = "template_source_exists"
    message = "A template source of this name exists already"
