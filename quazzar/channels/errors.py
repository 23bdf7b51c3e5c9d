"""What can be wrong with a call about channels."""

from quazzar.core.errors import Conflict, NotFound


class ChannelNotFound(NotFound):
    code = "channel_not_found"
    message = "There is no such notification channel"


class ChannelNameTaken(Conflict):
    code = "channel_name_taken"
    message = "A notification channel of this name exists already"


class ChannelInUse(Conflict):
    code = "channel_in_use"
    message = "Alert rules name this channel; take it out of them first"


class ChannelHasNoSecret(Conflict):
    code = "channel_has_no_secret"
    message = "Only webhooks are signed with a secret"


class TooManyChannels(Conflict):
    code = "channel_limit_reached"
    message = "There are as many notification channels as there may be; delete one first"


class MailNotConfigured(Conflict):
    code = "mail_not_configured"
    message = "No mail server is configured: whoever runs this panel sets smtp.host"
