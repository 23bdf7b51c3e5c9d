"""What can be wrong with a call on apps."""

from quazzar.core.errors import Conflict, Invalid, NotFound


class AppNotFound(NotFound):
    code = "app_not_found"
    message = "There is no such app"


class ServiceNotFound(NotFound):
    code = "service_not_found"
    message = "This app has no such service"


class AppNameTaken(Conflict):
    code = "app_name_taken"
    message = "An app of this name exists already"


class AppBusy(Conflict):
    """Another operation holds the app; its job tells how far it is."""

    code = "app_busy"
    message = "Another operation on this app is still running"

    @classmethod
    def with_status(cls, status: str) -> "AppBusy":
        """Of an app in a transitional status."""
        return cls(f"The app is {status}; wait until that is done")


class ChangePending(AppBusy):
    """Its containers and its data may be half of the one state and half of the other."""

    message = "A change of the app has not been taken back whole yet; restart it to go on with that"


class AppNotInstalled(Conflict):
    code = "app_not_installed"
    message = "This app was never installed whole; start it to install it again, or delete it"


class AppUnreadable(Invalid):
    """It was written by another release; it runs on, and can be stopped and deleted."""

    code = "app_unreadable"
    message = "What is stored of this app can't be read by this release"


class AppNotTrashed(Conflict):
    code = "app_not_trashed"
    message = "This app is not in the trash"


class NothingToRollBack(Conflict):
    code = "nothing_to_roll_back"
    message = "There is no version before: the app was not updated since it was installed"


class PortTaken(Conflict):
    code = "port_taken"
    message = "A host port that this app asks for is in use"


class DoesNotFit(Conflict):
    """`details` has the sum of each resource that does not work out."""

    code = "does_not_fit"
    message = "The machine has no room for this"


class HostFoldersShared(Conflict):
    code = "host_folders_shared"
    message = "This app has folders of the host, which a copy would not copy but share"


class UninstallFailed(Conflict):
    code = "uninstall_failed"
    message = "The app could not be removed"


class ProjectNotFound(NotFound):
    code = "project_not_found"
    message = "The engine has no Compose project of this name"


class ProjectAdopted(Conflict):
    code = "project_adopted"
    message = "This project is an app already"


class ProjectInvalid(Invalid):
    """A Compose project can't become an app as it runs; `details` has a sentence for each container and what of it."""

    code = "project_invalid"
    message = "The project can't become an app as it runs"


class ComposeInvalid(Invalid):
    """An imported file can't become an app; `details` has a sentence with the line for each place."""

    code = "compose_invalid"
    message = "The Compose file can't become an app"


class TemplateUnknown(Invalid):
    """An install names a template or a version that is not there; the body is at fault, not the path."""

    code = "validation_failed"
    message = "Validation failed"
