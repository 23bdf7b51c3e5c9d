"""Mail: written in the transaction of what it tells of, sealed until it is sent, and sent by a job that retries."""
