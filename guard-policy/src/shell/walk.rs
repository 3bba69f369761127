//! The walk over parsed shell text: lists, pipelines and compound commands.

use brush_parser::ast::{
    AndOr, AndOrList, Command, CompoundCommand, CompoundList, ExtendedTestExpr, ForClauseCommand, IfClauseCommand,
    Pipeline, Program, RedirectList,
};

use super::{VALUES_MAX, Values, Walk};
use crate::invocation::Word;

// === impl Walk ===

impl Walk<'_, '_> {
    pub(super) fn program(&mut self, program: &Program) {
        program.complete_commands.iter().for_each(|list| self.list(list, false));
    }

    pub(super) fn list(&mut self, list: &CompoundList, fed: bool) {
        list.0.iter().for_each(|item| self.and_or(&item.0, fed));
    }

    fn and_or(&mut self, list: &AndOrList, fed: bool) {
        self.pipeline(&list.first, fed);
        for next in &list.additional {
            let (AndOr::And(pipeline) | AndOr::Or(pipeline)) = next;
            self.pipeline(pipeline, fed);
        }
    }

    /// `fed`: bytes from the network may come in.
    fn pipeline(&mut self, pipeline: &Pipeline, fed: bool) {
        let before = self.judge.fetched;
        for command in &pipeline.seq {
            let fed = fed || self.judge.fetched > before;
            self.command(command, fed);
        }
    }

    fn redirects(&mut self, list: Option<&RedirectList>) {
        for redirect in list.into_iter().flat_map(|l| &l.0) {
            self.redirect(redirect);
        }
    }

    fn command(&mut self, command: &Command, fed: bool) {
        match command {
            Command::Simple(simple) => self.simple(simple, fed),
            Command::Compound(compound, redirects) => {
                self.redirects(redirects.as_ref());
                self.compound(compound, fed);
            }
            Command::Function(function) => {
                self.functions.insert(function.fname.value.clone());
                self.redirects(function.body.1.as_ref());
                self.compound(&function.body.0, false);
            }
            Command::ExtendedTest(test, redirects) => {
                self.redirects(redirects.as_ref());
                self.test(&test.expr);
            }
        }
    }

    fn compound(&mut self, compound: &CompoundCommand, fed: bool) {
        match compound {
            CompoundCommand::Arithmetic(a) => self.arithmetic(&a.expr.value),
            CompoundCommand::ArithmeticForClause(a) => {
                for expr in [&a.initializer, &a.condition, &a.updater].into_iter().flatten() {
                    self.arithmetic(&expr.value);
                }
                self.list(&a.body.list, fed);
            }
            CompoundCommand::BraceGroup(group) => self.list(&group.list, fed),
            CompoundCommand::Subshell(subshell) => self.subshell(&subshell.list, fed),
            CompoundCommand::ForClause(clause) => self.for_clause(clause),
            CompoundCommand::CaseClause(case) => {
                self.word(&case.value.value);
                for item in &case.cases {
                    item.patterns.iter().for_each(|p| drop(self.word(&p.value)));
                    item.cmd.iter().for_each(|list| self.list(list, fed));
                }
            }
            CompoundCommand::IfClause(clause) => self.if_clause(clause, fed),
            CompoundCommand::WhileClause(clause) | CompoundCommand::UntilClause(clause) => {
                self.list(&clause.0, fed);
                self.list(&clause.1.list, fed);
            }
            CompoundCommand::Coprocess(coprocess) => self.command(&coprocess.body, fed),
        }
    }

    /// A subshell keeps its working directory to itself.
    pub(super) fn subshell(&mut self, list: &CompoundList, fed: bool) {
        let cwd = self.judge.places.cwd.clone();
        self.list(list, fed);
        self.judge.places.cwd = cwd;
    }

    fn arithmetic(&mut self, text: &str) {
        self.hidden(text);
        // It may set any variable that it names.
        for name in text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_').filter(|n| !n.is_empty()) {
            self.assign(name, None);
        }
    }

    fn for_clause(&mut self, clause: &ForClauseCommand) {
        // Without `in`, the loop runs over the shell's arguments.
        let mut values: Values = clause.values.is_some().then(Vec::new);
        for word in clause.values.iter().flatten() {
            for value in self.word(&word.value) {
                match (&mut values, value.is_fixed()) {
                    (Some(all), true) if all.len() < VALUES_MAX => all.push(value.text),
                    (Some(_) | None, _) => values = None,
                }
            }
        }
        self.variable(&clause.variable_name, None, "");
        self.assign(&clause.variable_name, values);
        self.list(&clause.body.list, false);
    }

    fn if_clause(&mut self, clause: &IfClauseCommand, fed: bool) {
        self.list(&clause.condition, fed);
        self.list(&clause.then, fed);
        for other in clause.elses.iter().flatten() {
            other.condition.iter().for_each(|list| self.list(list, fed));
            self.list(&other.body, fed);
        }
    }

    fn test(&mut self, expr: &ExtendedTestExpr) {
        let words: Vec<Word> = match expr {
            ExtendedTestExpr::And(a, b) | ExtendedTestExpr::Or(a, b) => {
                self.test(a);
                return self.test(b);
            }
            ExtendedTestExpr::Not(inner) | ExtendedTestExpr::Parenthesized(inner) => return self.test(inner),
            ExtendedTestExpr::UnaryTest(_, word) => self.word(&word.value),
            ExtendedTestExpr::BinaryTest(_, a, b) => {
                self.word(&a.value);
                self.word(&b.value)
            }
        };
        drop(words);
    }
}
