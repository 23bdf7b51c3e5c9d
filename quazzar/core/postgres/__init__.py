"""The embedded PostgreSQL: its cluster in the data folder, its server as our child, and what brings both back.

Why the server outlives a `kill -9` of us, and is taken over at the next start: the kernel's "signal me when my parent
dies" (PR_SET_PDEATHSIG) fires when the *thread* that started the child ends, is forgotten when the child changes its
user, and would turn each crash of ours into a crash recovery of the database. A server that is left alone finishes
its transactions, and the next start finds it by its `postmaster.pid`, proves that it is ours and watches it through a
pidfd as if it were its child. What can't be proved or doesn't answer is stopped and started anew.

Why paths may read `/proc/self/fd/N/…`: as root the server runs under a system user of its own, which can't walk
through folders such as /root. We never open folders to it. The server inherits an open handle of our folder instead,
and this path enters it without the walk. Programs can't be started that way (PostgreSQL asks for the real path of its
own), so a copy of them in `cache_dir` stands in when the package lies behind a closed folder.

Folders (as root all but `data` and `run` belong to root, so the server's user can't redirect what we write):

    data_dir/postgres/lock                 held while a Quazzar runs on this data folder
                     /18/data              the cluster
                     /18.new-…             a cluster that isn't finished: removed at the next start
                     /conf                 who may log in
                     /run                  the socket (a link to a folder with a shorter path when this one is too long)
                     /log/postgres.log
"""

from quazzar.core.postgres.errors import PostgresError
from quazzar.core.postgres.roles import ensure_roles
from quazzar.core.postgres.supervisor import DatabaseUrls, EmbeddedPostgres

__all__ = ["DatabaseUrls", "EmbeddedPostgres", "PostgresError", "ensure_roles"]
