"""What can be wrong with a call on registries."""

from quazzar.core.errors import Conflict, Forbidden, NotFound


class RegistryNotFound(NotFound):
    code = "registry_not_found"
    message = "There is no such registry"


class RegistryExists(Conflict):
    code = "registry_exists"
    message = "There is a login for this registry already; change that one"


class TooManyRegistries(Conflict):
    code = "registry_limit_reached"
    message = "There are as many registries as there may be; delete one first"


class RegistryKeyBound(Forbidden):
    code = "key_bound"
    message = "A key that is bound to apps can't add a registry, which all apps use"
