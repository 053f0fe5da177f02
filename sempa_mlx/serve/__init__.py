"""A local server of OpenAI's shape: one model in memory embeds and chats (extra `serve`)."""
