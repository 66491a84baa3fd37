"""The shipped programs by the names that a person types."""

from __future__ import annotations

from collections.abc import Mapping

from llmos.agents import filters
from llmos.agents.assistant import assistant
from llmos.agents.best_of_n import best_of_n, best_of_n_writer
from llmos.agents.chat import chat
from llmos.agents.consolidate import consolidate
from llmos.agents.critic import critic
from llmos.agents.debate import debate, debater
from llmos.agents.demo import demo, demo_reporter
from llmos.agents.documents import documents
from llmos.agents.indexing import indexer
from llmos.agents.judge import judge
from llmos.agents.learner import learner
from llmos.agents.react import react
from llmos.agents.research import research, research_worker, research_writer
from llmos.agents.summarise import summarise, summarise_chunk
from llmos.agents.tool_agent import tool_agent
from llmos.agents.tool_practice import tool_practice
from llmos.agents.tree_of_thought import tree_of_thought
from llmos.syscalls.trap import ProgramFunction

PROGRAMS: Mapping[str, ProgramFunction] = {
    "assistant": assistant,
    "best-of-n": best_of_n,
    "best-of-n-writer": best_of_n_writer,
    "cat": filters.cat,
    "chat": chat,
    "consolidate": consolidate,
    "critic": critic,
    "debate": debate,
    "debater": debater,
    "demo": demo,
    "demo-reporter": demo_reporter,
    "documents": documents,
    "echo": filters.echo,
    "grep": filters.grep,
    "indexer": indexer,
    "judge": judge,
    "learner": learner,
    "react": react,
    "research": research,
    "research-worker": research_worker,
    "research-writer": research_writer,
    "sleep": filters.sleep,
    "summarise": summarise,
    "summarise-chunk": summarise_chunk,
    "tool-agent": tool_agent,
    "tool-practice": tool_practice,
    "tree-of-thought": tree_of_thought,
    "upper": filters.upper,
    "wc": filters.wc,
}
